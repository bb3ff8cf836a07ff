"""What a promoted model is made of and how: a bill of materials, a provenance statement, and the check of both."""
