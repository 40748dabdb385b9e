"""Speed and memory against peers, measured side by side. Never part of the product or its tests."""
