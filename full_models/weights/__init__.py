"""Reading and writing weights in the layouts of the field."""
