"""Data-efficiency studies: what is the next label worth, and does pretraining save any?"""
