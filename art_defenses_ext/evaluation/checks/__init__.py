"""Did the attacks work?"""
