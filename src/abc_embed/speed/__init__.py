"""What work costs: measured (`bench speed`), and foreseen before it starts (`plan`)."""
