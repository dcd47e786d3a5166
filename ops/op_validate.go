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
// in the image itself. A set is the child of its active disk. No content is read:
// it looks at headers and block tables.
func runValidate(ctx context.Context, r *Request) (Fields, error) {
	links, err := r.Library.ChainOf(r.Image)
	if err != nil {
		return nil, err
	}
	r.Begin(0)
	child := ""
	for i := range links {
		l := &links[i]
		path := l.Ref.Path()
		if l.Found.Set != nil && l.Found.Leaf != l.Ref {
			child, path = path, l.Found.Leaf.Path()
		}
		if err := r.usable(ctx, l); err != nil {
			if child == "" {
				return brokenLink(path, ""), err
			}
			return brokenLink(child, path), err
		}
		if l.Err != nil {
			return brokenLink(path, wantedParent(l)), l.Err
		}
		child = path
	}
	return nil, nil
}

func brokenLink(child, parent string) Fields {
	return Fields{{"Child", child}, {"Parent", parent}}
}

// usable tells why an image cannot be trusted on its own.
func (r *Request) usable(ctx context.Context, l *Link) error {
	if l.Found.Err != nil {
		return l.Found.Err
	}
	for _, a := range l.Found.Info.Anomalies {
		if a.Severity == Broken {
			return broken(a)
		}
	}
	for try := 1; ; try++ {
		var first *Anomaly
		moved, err := r.Library.checkLayer(ctx, l.Ref, func(layer Layer) error {
			return firstBroken(ctx, layer, &first)
		})
		switch {
		case err != nil:
			return err
		case first == nil:
			return nil
		case !moved || try == checkTries:
			return broken(*first)
		}
	}
}

func broken(a Anomaly) error { return Corruptf(0, "%s: %s: %s", a.Name, a.Where, a.Text) }

// firstBroken ends at the first entry of the block table that cannot be used.
func firstBroken(ctx context.Context, layer Layer, first **Anomaly) error {
	c, ok := layer.(TableChecker)
	if !ok {
		return ctx.Err()
	}
	look, stop := context.WithCancel(ctx)
	defer stop()
	err := c.CheckTable(look, func(a Anomaly) {
		if *first == nil && a.Severity == Broken {
			*first = &a
			stop()
		}
	})
	if *first != nil {
		return ctx.Err() // its own end is not the caller's
	}
	return err
}

// wantedParent is the first path that an image records of its parent.
func wantedParent(l *Link) string {
	if len(l.Stored) == 0 {
		return ""
	}
	return l.Stored[0].Path
}
