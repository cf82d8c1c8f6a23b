"""What may be asked (`prompt`) and what is flagged when it is shown (`image`)."""
