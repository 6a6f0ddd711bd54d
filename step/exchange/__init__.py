"""Layouts of class maps and masks that other methods and tools read and write."""
