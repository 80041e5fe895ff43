"""The loops.  They know no method by name."""
