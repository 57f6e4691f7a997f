"""Does a sentiment direction steer, what does it cost, and when does it do nothing?"""
