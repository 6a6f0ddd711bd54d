"""The report page: one HTML file, and what is drawn into it."""
