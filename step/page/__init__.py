"""What report.html shows of a run."""
