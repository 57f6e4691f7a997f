"""Which methods put the step that is known to matter first?"""
