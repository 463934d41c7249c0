"""The linear loss where MindSpore makes the logits: in chunks of rows, or all at once."""
