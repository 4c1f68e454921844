"""A slow model of a guest's debug registers that shares no code with the project's own, and its streams."""
