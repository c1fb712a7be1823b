"""What a run leaves behind: tables of rows, exact figures over them, a folder that is complete or says it is not."""
