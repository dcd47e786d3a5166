package vhdx

// span is the bytes [off, end) of a file.
type span struct{ off, end int64 }

func (s span) len() int64             { return s.end - s.off }
func (s span) overlaps(t span) bool   { return s.off < t.end && t.off < s.end }
func (s span) contains(at int64) bool { return s.off <= at && at < s.end }
func roundUp(n, unit int64) int64     { return (n + unit - 1) / unit * unit }
func ceilDiv(n, unit int64) int64     { return (n + unit - 1) / unit }
