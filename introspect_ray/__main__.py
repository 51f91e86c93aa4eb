"""`python -m introspect_ray` is the console command `introspect-ray`."""

from introspect_ray.commands import main

if __name__ == "__main__":
    main()
