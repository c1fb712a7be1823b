"""Measured tables of operators as a source of times: a user's own profile, the roofline where it is silent."""
