"""The paper's argument as a table: runs that differ from CRT in one thing, and their scores."""
