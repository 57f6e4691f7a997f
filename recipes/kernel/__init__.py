"""Is an attention head a kernel smoother of its keys, or a list of popular ones?"""
