"""What a run leaves behind: tables of rows, exact figures over them, and a folder that is complete or says that it is not."""
