"""From YAML or data to stages that fit together."""
