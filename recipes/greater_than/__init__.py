"""Does the model know that a war ends after it begins, and where does it read the year?"""
