"""The gated delta net: linear attention whose state forgets and corrects itself."""
