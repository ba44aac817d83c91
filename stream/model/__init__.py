"""The model: learning online with River's logistic regression over quantile bins, and its compiled form."""
