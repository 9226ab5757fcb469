"""Fast exact influence scores on top of kronfluence; knows no run, no argument and no name of
stored scores.
"""
