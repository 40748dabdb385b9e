"""Speed and memory against other libraries, measured side by side; not part of the product or its tests."""
