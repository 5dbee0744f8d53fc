"""From records to tokens to device batches."""
