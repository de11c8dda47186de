"The laboratory: what the claims of the book were measured with. The product imports nothing of it."
