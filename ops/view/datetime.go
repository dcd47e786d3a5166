package view

import (
	"fmt"
	"time"
)

// DateTime is the CIM form of t in UTC, yyyymmddHHMMSS.mmmmmm+000; nil, which
// JSON shows as null, for the zero time.
func DateTime(t time.Time) *string {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	s := fmt.Sprintf("%s.%06d+000", t.Format("20060102150405"), t.Nanosecond()/1000)
	return &s
}
