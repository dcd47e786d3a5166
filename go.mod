module vhdfs

go 1.26
