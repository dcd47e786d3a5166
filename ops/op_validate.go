package ops

import "context"

// opValidate asks whether the image can be used as it stands.
var opValidate = &Op{
	Name:    "validate",
	Method:  "ValidateVirtualHardDisk",
	Brief:   "open the image and every parent, read-only",
	JobType: 9,
	Run:     runValidate,
}

// runValidate fails at the first image from the leaf up that cannot be used.
// Child and Parent name the link that broke; Parent is empty when the trouble is
// in the image itself.
func runValidate(ctx context.Context, r *Request) (Fields, error) {
	links, err := r.Library.ChainOf(r.Image)
	if err != nil {
		return nil, err
	}
	r.Begin(0)
	child := ""
	for i := range links {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		l := &links[i]
		if err := usable(l.Found); err != nil {
			if child == "" {
				return Fields{{"Child", l.Ref.Path()}, {"Parent", ""}}, err
			}
			return Fields{{"Child", child}, {"Parent", l.Ref.Path()}}, err
		}
		if l.Err != nil {
			return Fields{{"Child", l.Ref.Path()}, {"Parent", wantedParent(l)}}, l.Err
		}
		child = l.Ref.Path()
	}
	return nil, nil
}

// usable tells why an image cannot be trusted on its own.
func usable(f *Found) error {
	if f.Err != nil {
		return f.Err
	}
	for _, a := range f.Info.Anomalies {
		if a.Severity == Broken {
			return Corruptf(0, "%s: %s: %s", a.Name, a.Where, a.Text)
		}
	}
	return nil
}

// wantedParent is the first path that an image records of its parent.
func wantedParent(l *Link) string {
	if len(l.Stored) == 0 {
		return ""
	}
	return l.Stored[0].Path
}
