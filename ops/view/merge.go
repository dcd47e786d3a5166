package view

import "vhdfs/ops"

// PendingMerge is a merge that has begun and is not over.
type PendingMerge struct {
	Source      string // whose merge file resumes it
	Destination string
	Role        string // of this image, or of the first of its chain that takes part: source, between or destination
	Moved       bool   // nothing has to be copied any more
	Error       string `json:",omitempty"` // why its record cannot be read
}

// pendingMerge looks for a merge that an image of the chain takes part in, the
// image itself first; nil without one.
func pendingMerge(lib *ops.Library, links []ops.Link) *PendingMerge {
	for _, l := range links {
		p, err := lib.MergePending(l.Ref)
		switch {
		case err != nil:
			return &PendingMerge{Error: ops.Sentence(err)}
		case p != nil:
			return &PendingMerge{Source: p.Source, Destination: p.Destination, Role: p.Role, Moved: p.Moved}
		}
	}
	return nil
}
