"""Programs that call the pipeline."""
