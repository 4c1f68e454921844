"""What operations and exits cost on a processor: one TOML file a list, each figure with its source."""
