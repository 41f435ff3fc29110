module logreg

go 1.21
