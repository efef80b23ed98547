"""DINO-style detection: a shared encoder and one decoder per dataset."""
