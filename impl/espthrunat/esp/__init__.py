"""ESP (RFC 2406): suites, security associations and selectors."""
