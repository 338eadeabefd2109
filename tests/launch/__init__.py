"""Launch scripts, run against fake programs that write down what they were asked."""
