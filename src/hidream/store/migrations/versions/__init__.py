"""One file per step, forward only; a step that was released is never edited."""
