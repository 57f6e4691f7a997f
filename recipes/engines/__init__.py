"""A real server to try the server engine against: vLLM on a CPU, in a virtual environment of its own."""
