"""What outlives the server: the state directory, checkpoints, resumed sessions."""
