"""Do the ways to say which step of a solution matters agree, and more than with headroom or with its place?"""
