"""Which heads copy what followed the same token before, and what does the model lose without them?"""
