"""The commands of `hidream`, one module each, and what they share. `cli.py` runs them.

`index` lists the commands, and imports the module of a command when that command is used. A command's module declares
its grammar (`grammar`, `values`, `setting_flags`, `parameter_flags`) and has the function that runs it. Heavy packages
are imported inside that function, so that `--help`, completion and errors come at once.
"""
