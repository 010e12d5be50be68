"""What ships with the package: simulated demo data."""
