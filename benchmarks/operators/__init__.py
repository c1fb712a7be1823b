"""A module per kind of operator: its measured tables, the fit of its constants, and its errors on shapes left out."""
