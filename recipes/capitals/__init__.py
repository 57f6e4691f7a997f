"""Where is a fact read: from which layer on does the last token know the capital?"""
