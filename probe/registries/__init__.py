"""What can be chosen by name: the edits of a rewind and the methods of importance. From here command lines, dry runs and the
manual take their names and sentences; imports nothing heavy."""
