"""Does full resolution pay?  One job an arm, compared frame by frame on the same test frames."""
