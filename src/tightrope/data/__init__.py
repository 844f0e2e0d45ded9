"""Datasets, one file each, and what they share: lookup, checksums, batches and augmentation."""
