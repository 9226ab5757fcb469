"""Fast exact influence scores on top of kronfluence; knows no run, argument or name of scores."""
